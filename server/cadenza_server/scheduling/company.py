"""What the jobs before one in the same command bring, and what it must not contradict."""

from typing import Final

from cadenza_server.model.paths import ancestors


class Company:
    """Names, users and accounts of jobs that are checked and not yet entered."""

    __slots__ = ("accounts", "names", "users")

    def __init__(self) -> None:
        self.names: Final[set[str]] = set()
        self.users: Final[set[str]] = set()
        self.accounts: Final[set[str]] = set()

    def join(self, user: str) -> None:
        """Add the user of a job that was checked."""
        if user not in self.users:
            self.users.add(user)
            self.accounts.update(ancestors(user))


ALONE: Final = Company()
"""Of a command that is about one thing only: nobody joins it."""
