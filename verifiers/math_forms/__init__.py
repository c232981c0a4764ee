"""How mathematical answers are read, computed and compared."""
