"""What is wrong with a program, in a sentence for its author."""


class ProgramError(Exception):
    """The program itself failed: its job ends as EXECUTION_ERROR with this sentence as its detail."""
