"""SIGKILL to the whole process trees whose roots are given by their ids."""

import sys

from processes import kill_trees

kill_trees([int(pid) for pid in sys.argv[1:]])
