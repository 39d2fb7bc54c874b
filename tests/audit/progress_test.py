from spax.audit.progress import Part, Silent


class Recorder:
    """Notes what it is told."""

    def __init__(self):
        self.calls = []

    def start(self, total):
        self.calls.append(("start", total))

    def advance(self, units, text):
        self.calls.append(("advance", units, text))

    def finish(self):
        self.calls.append(("finish",))


def test_a_part_only_advances_the_whole():
    whole = Recorder()
    part = Part(whole)
    part.start(3.0)
    part.advance(2.0, "next")
    part.finish()
    assert whole.calls == [("advance", 2.0, "next")]


def test_silence_says_nothing(capsys):
    silent = Silent()
    silent.start(1.0)
    silent.advance(1.0, "next")
    silent.finish()
    assert capsys.readouterr() == ("", "")
