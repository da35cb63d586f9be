"""How much memory a call takes that belongs to no file."""

import threading


def anonymous():
    """Bytes of this process's memory that belong to no file."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


class Peak:
    """By how much anonymous memory peaked above what it was, asked every so many seconds."""

    def __init__(self, every=0.001):
        self.every = every

    def __enter__(self):
        self.start = self.most = anonymous()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self):
        while not self.done.wait(self.every):
            self.most = max(self.most, anonymous())

    def __exit__(self, *rest):
        self.done.set()
        self.thread.join()
        self.extra = max(self.most, anonymous()) - self.start
