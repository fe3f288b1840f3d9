// The version of dsmc, as `dsmc --version`, `plan --json` and executables say it.
#ifndef DSM_BASE_VERSION_H
#define DSM_BASE_VERSION_H

#define DSMC_VERSION "0.1.0"

#endif
