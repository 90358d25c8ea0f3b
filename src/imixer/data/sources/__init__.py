"""Where images come from: folders, parquet shards, packaged digits, torchvision, timm."""
