"""What server reflection answers from: the descriptors of the contract, methods included."""

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor


class ReflectionPool:
    """protobuf's default pool, in which methods are found by name, too.

    The protocol asks for the file that contains a symbol, such as a method, and load testers (ghz) do ask for methods;
    but of Python's pools some know no methods by name.
    """

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> object:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """The file that declares `symbol`, a full name. Raises `KeyError`."""
        try:
            file: FileDescriptor = self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service_name, _, method_name = symbol.rpartition(".")
            service = self._pool.FindServiceByName(service_name)
            if method_name not in service.methods_by_name:
                raise
            file = service.file
        return file
