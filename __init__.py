"""alexshard: the ImageNet archives as WebDataset shards, batches through DALI, and the AlexNet of 2012.

    archives → alexshard.tools.packing → shards on disk → alexshard.pipeline → alexshard.trainer

`alexshard.shards` is the format on disk, `alexshard.pipeline` turns a shard set into batches, `alexshard.trainer`
turns batches into a trained network, `alexshard.tools` holds packing and the commands `alexshard` and `alextrain`.
"""

__version__ = "0.5.0"
