// Opening Open MPI at run time.
//
// The plugin (mpi/plugin.c) is embedded in the runtime. A process that needs it writes it to a file
// in memory and opens that; the loader then looks for libmpi. So an executable starts, and says
// what is missing, on a machine without MPI.
#ifndef DSM_COMM_MPI_H
#define DSM_COMM_MPI_H

#include "runtime/base/status.h"
#include "runtime/comm_engine.h"

// The rank and the number of ranks that mpirun told this process in its environment; false: it was
// not started by an mpirun we know (Open MPI's, or one of MPICH's kind).
bool mpi_started(int *rank, int *ranks);

// Whether this build has the plugin.
bool mpi_built(void);

status *mpi_open(int lanes, comm_engine *out) STATUS_MUST_USE;

#endif
