"""One image and sets of them: decode, align, augment, make ready for a model.

Every image is decoded by `decode.decode_into`, on the device by `device_decode`; `images.Images` is the
protocol of a set of images, wherever they lie.
"""
