"""Commands, packing and measuring tools."""
