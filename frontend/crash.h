// When dsmc itself is wrong: a folder with all that is needed to see it again, and exit code 4.
#ifndef DSM_FRONTEND_CRASH_H
#define DSM_FRONTEND_CRASH_H

// From here on SIGSEGV, SIGABRT and their like write `dsmc-crash-PID/` in the current folder (the
// command line and a copy of every file named on it), say so in one line, and exit with code 4.
// Builds with AddressSanitizer keep its own reports and install nothing.
void crash_install(void);

#endif
