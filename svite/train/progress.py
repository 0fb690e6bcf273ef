"""One line an epoch, and a line a minute in long ones, with the time left.

Lines begin with `MARK`, by which saved notebooks leave them out.
"""

import time

MARK = "epoch "
SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """Prints where a run is; the clock shows on the screen only. One of several processes speaks."""

    def __init__(self, epochs: int, done: float = 0, speaks: bool = True) -> None:
        self.epochs, self.first, self.speaks = epochs, done, speaks
        self.begun = self.said = time.perf_counter()

    def line(self, done: float, said: str) -> str:
        """The line for so many epochs done, with the pace since training began or went on."""
        each = (time.perf_counter() - self.begun) / max(done - self.first, 1e-9)
        minutes, seconds = divmod(round(each * (self.epochs - done)), 60)
        left = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
        number = f"{done:>{len(str(self.epochs))}g}" if done == int(done) else f"{done:.2f}"
        return f"{MARK}{number}/{self.epochs}  {said}  {each:.1f} s/epoch  ETA {left}"

    def show(self, epoch: int, loss: float, validation: float, density: float) -> None:
        """An epoch (counted from 1) that has just ended."""
        self._say(epoch, f"loss {loss:.3f}  validation {validation:.1f} %  density {density:.3f}")

    def tick(self, done: float, loss: float) -> None:
        """Somewhere in an epoch; says so if nothing was said for a minute."""
        if time.perf_counter() - self.said > SECONDS_BETWEEN_LINES:
            self._say(done, f"loss {loss:.3f}")

    def _say(self, done: float, said: str) -> None:
        if self.speaks:
            print(self.line(done, said), flush=True)
            self.said = time.perf_counter()
