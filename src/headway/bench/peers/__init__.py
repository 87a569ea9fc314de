"""The programs that headway is measured beside. Each module is run in a process of its own and imported by nothing."""
