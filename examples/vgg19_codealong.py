"""The transfer learning codealong with VGG19, in one `fit`.

A classic lesson: a folder of photos of two classes, VGG19 as a feature extractor, augmentation,
then fine-tuning from `block5_conv1` on. Usually this takes three or more `compile` and `fit` calls.
Here it takes one.

    python examples/vgg19_codealong.py [FOLDER]

FOLDER has `train`, `validation` and `test`, each with a subfolder for each class. Without FOLDER,
or if the ImageNet weights can't be downloaded, the script says so, uses scikit-learn's digits and
pretrains a small base.
"""

# --8<-- [start:imports]
import sys
import time
from pathlib import Path

import keras
import numpy as np

from keras_freeze import BottleneckCache, FreezeBase, GradualUnfreeze, Stage, plot_history

# --8<-- [end:imports]

# --8<-- [start:data]
SIZE = 64


def load_folder(folder):
    """Returns the images of the three subfolders as arrays, with labels 0 or 1."""
    sets = []
    for part in ("train", "validation", "test"):
        images, labels = [], []
        for label, kind in enumerate(sorted(path for path in Path(folder, part).iterdir())):
            for path in sorted(kind.iterdir()):
                image = keras.utils.load_img(path, target_size=(SIZE, SIZE))
                images.append(keras.utils.img_to_array(image))
                labels.append(label)
        sets.append((np.stack(images), np.array(labels, "float32")))
    return sets


def load_vgg19(folder):
    """Returns the data, VGG19 with ImageNet weights, and a selector of its last block."""
    sets = [(keras.applications.vgg19.preprocess_input(x), y) for x, y in load_folder(folder)]
    base = keras.applications.VGG19(
        include_top=False, weights="imagenet", input_shape=(SIZE, SIZE, 3), name="base"
    )
    return sets, base, "block5_conv1:"


def load_small():
    """Returns the same for handwritten digits (even or odd), with a small base."""
    from keras_freeze.demo import digits_transfer

    base, _, (images, labels) = digits_transfer()
    even = (labels % 2 == 1).astype("float32")  # 5 to 9 are labelled 0 to 4
    parts = slice(0, 200), slice(200, 400), slice(400, None)
    return [(images[part], even[part]) for part in parts], base, "block3_conv:"


# --8<-- [end:data]

# --8<-- [start:model]
RATE, FINE_RATE = 2e-3, 2e-4
EPOCHS, FINE_TUNE_AT = 12, 7


def build(base):
    """Returns a classifier of two classes on a base."""
    keras.utils.set_random_seed(0)
    head = [
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(1, activation="sigmoid"),
    ]
    model = keras.Sequential([keras.Input(base.input_shape[1:]), base, *head])
    model.compile(keras.optimizers.RMSprop(RATE), "binary_crossentropy", metrics=["accuracy"])
    return model


# --8<-- [end:model]


# --8<-- [start:fit]
def train(model, sets, fine_tune_from, *cache):
    """Runs feature extraction and fine-tuning in one `fit`. Returns the History and the seconds."""
    (images, labels), validation, _ = sets
    start = time.perf_counter()
    history = model.fit(
        images,
        labels,
        batch_size=20,
        epochs=EPOCHS,
        validation_data=validation,
        verbose=0,
        callbacks=[
            FreezeBase("base"),
            GradualUnfreeze([Stage(FINE_TUNE_AT, fine_tune_from, learning_rate=FINE_RATE)]),
            *cache,
        ],
    )
    return history, time.perf_counter() - start


# --8<-- [end:fit]


# --8<-- [start:augmented]
def augmented(sets, times=3):
    """Adds shifted and rotated variants of each training image, as data that can be cached."""
    (images, labels), *others = sets
    keras.utils.set_random_seed(0)
    vary = keras.Sequential(
        [keras.layers.RandomTranslation(0.05, 0.05), keras.layers.RandomRotation(0.02)]
    )
    varied = [keras.ops.convert_to_numpy(vary(images, training=True)) for _ in range(times)]
    return [(np.concatenate([images, *varied]), np.tile(labels, times + 1)), *others]


# --8<-- [end:augmented]


def check_frozen(model):
    """Prints which layers train, and how many weights (the lesson's freeze check)."""
    # --8<-- [start:check]
    for layer in model.get_layer("base").layers:
        if layer.weights:
            print(f"{layer.name:<14} {layer.trainable}")
    print(len(model.trainable_weights), "weights train")
    # --8<-- [end:check]


def main():
    """Runs the lesson."""
    try:
        if len(sys.argv) < 2:
            raise OSError("no folder was given")
        sets, base, fine_tune_from = load_vgg19(sys.argv[1])
    except Exception as error:  # Keras raises a bare Exception where a download fails
        print(f"A small base and digits, because: {error}")
        sets, base, fine_tune_from = load_small()
    pretrained = base.get_weights()

    model = build(base)
    history, seconds = train(model, sets, fine_tune_from, BottleneckCache())
    check_frozen(model)
    print(dict(zip(model.metrics_names, model.evaluate(*sets[2], verbose=0), strict=False)))

    base.set_weights(pretrained)
    plain, plain_seconds = train(build(base), sets, fine_tune_from)
    print(f"{seconds:.1f} s, without the cache {plain_seconds:.1f} s")
    far = np.abs(np.subtract(history.history["loss"], plain.history["loss"])).max()
    print(f"largest difference of any epoch's loss: {far:.1e}")

    base.set_weights(pretrained)
    model = build(base)
    train(model, augmented(sets), fine_tune_from, BottleneckCache())
    print("augmented:", model.evaluate(*sets[2], verbose=0, return_dict=True))
    plot_history(history).savefig("vgg19_codealong.png")


if __name__ == "__main__":
    main()
