"""One line an epoch, with the time left. Lines begin with `MARK`, by which saved notebooks leave them out."""

import time

MARK = "epoch "


class Progress:
    """Prints epochs as they end; the clock shows on the screen only."""

    def __init__(self, epochs: int, done: int = 0) -> None:
        self.epochs, self.first = epochs, done
        self.begun = time.perf_counter()

    def line(self, epoch: int, loss: float, validation: float, density: float) -> str:
        """The line for an epoch (counted from 1) that has just ended."""
        each = (time.perf_counter() - self.begun) / max(epoch - self.first, 1)
        left = round(each * (self.epochs - epoch))
        return (
            f"{MARK}{epoch:>{len(str(self.epochs))}}/{self.epochs}  loss {loss:.3f}  validation {validation:.1f} %  "
            f"density {density:.3f}  {each:.1f} s/epoch  ETA {left // 60}:{left % 60:02d}"
        )

    def show(self, epoch: int, loss: float, validation: float, density: float) -> None:
        """Print it at once."""
        print(self.line(epoch, loss, validation, density), flush=True)
