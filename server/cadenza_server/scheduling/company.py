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

    def join(self, name: str, user: str | None) -> None:
        """Add a job that was checked; `user` None: a calibration."""
        self.names.add(name)
        if user is not None and user not in self.users:
            self.users.add(user)
            self.accounts.update(ancestors(user))
