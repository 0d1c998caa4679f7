"""Runs the tests of a suite: one line each, and the summary that the test leg adds up."""

import sys
import time
import traceback
import unittest


class Runner:
    """Runs test functions, prints a line for each and the summary that the test leg adds up."""

    def __init__(self):
        self.passed, self.failed, self.start = 0, [], time.monotonic()

    def run(self, name, test):
        begin = time.monotonic()
        try:
            note = test()
        except Exception:
            self.failed.append(name)
            print(f"test {name} ... FAILED\n{traceback.format_exc()}", flush=True)
            return
        self.passed += 1
        note = f" ({note})" if isinstance(note, str) else ""
        print(f"test {name} ... ok{note} in {time.monotonic() - begin:.2f} s", flush=True)

    def end(self):
        for name in self.failed:
            print(f"failed: {name}; again alone: python {sys.argv[0]} {name}")
        word = "FAILED" if self.failed else "ok"
        seconds = time.monotonic() - self.start
        print(f"test result: {word}. {self.passed} passed; {len(self.failed)} failed; finished in {seconds:.1f} s", flush=True)
        sys.exit(1 if self.failed else 0)


def main(*tables):
    """Runs the tests of `tables`, each a dict from name to function, and of every `unittest.TestCase` in the program."""
    runner, wanted = Runner(), sys.argv[1:]
    chosen = lambda name: not wanted or any(w in name for w in wanted)
    for table in tables:
        for name, test in table.items():
            if chosen(name):
                runner.run(name, test)
    module = sys.modules["__main__"]
    for case in unittest.defaultTestLoader.loadTestsFromModule(module):
        for test in case:
            name = test.id().removeprefix("__main__.")
            if chosen(name):
                runner.run(name, lambda test=test: one(test))
    runner.end()


def one(test):
    """Runs one unittest method; what it returns is its note."""
    test.setUp()
    try:
        return getattr(test, test._testMethodName)()
    finally:
        test.tearDown()
        test.doCleanups()
