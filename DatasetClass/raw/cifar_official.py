"""What the authors of CIFAR-10 and CIFAR-100 publish: names of files, their hashes, the classes."""

from __future__ import annotations

from dataclasses import dataclass

URL = "https://www.cs.toronto.edu/~kriz/{}"


@dataclass(frozen=True)
class Official:
    """One of the two sets.

    Attributes:
        title: its name in messages.
        archive, folder: their names in the data folder; torchvision unpacks into the same one.
        sha256: of the archive; also that of keras (keras.datasets.cifar10, cifar100, file_hash).
        train, test: MD5 by name of a batch file; also those of torchvision.
        labels: the name of the labels in a batch.
        classes: their names by label, as the archive's ``meta`` files list them.
    """

    title: str
    archive: str
    folder: str
    sha256: str
    train: dict[str, str]
    test: dict[str, str]
    labels: bytes
    classes: tuple[str, ...]


_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
OFFICIAL = {
    "cifar10": Official(
        title="CIFAR-10",
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        labels=b"labels",
        classes=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
    ),
    "cifar100": Official(
        title="CIFAR-100",
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        labels=b"fine_labels",
        classes=tuple(_CIFAR100.split()),
    ),
}
