"""Workers of hugqueue: Celery processes that take tickets, and device processes that run the models."""

from hugqueue.packages import require_own

require_own("common")

#: Exit status of a worker that cannot start and should not be started again (EX_CONFIG of sysexits.h).
EXIT_CANNOT_START = 78
#: Exit status of a worker whose device process cannot be kept alive (EX_UNAVAILABLE of sysexits.h).
EXIT_DEVICE_BROKEN = 69
#: Exit status of a supervised worker that `celery control shutdown` ended (the first that sysexits.h does not use).
EXIT_SHUT_DOWN = 79
