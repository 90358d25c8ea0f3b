"""The fast data path: images as bytes on the device that trains, augmented there in whole batches."""

from imixer.data.device.batches import ResidentTraining, ResidentValidation, build_resident

__all__ = ["ResidentTraining", "ResidentValidation", "build_resident"]
