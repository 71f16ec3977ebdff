"""The prompts of preference data, for evaluations that draw a picture of each."""


from lpo_platform.data.source import Sample


class PairPrompts:
    """Preference data as captions without pictures; train and test are splits of data/image_pairs.py."""

    def __init__(self, train: object, test: object) -> None:
        self.train, self.test = Captions(train), Captions(test)


class Captions:
    """One split, as `data.source.Source`."""

    def __init__(self, pairs: object) -> None:
        self._pairs, self.fingerprint = pairs, pairs.fingerprint

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> Sample:
        return Sample(self._pairs.id(i), None, self._pairs.caption(i))

    def caption(self, i: int) -> str:
        return self._pairs.caption(i)
