// What the two halves of frontend/clusters.h share.
#ifndef DSM_FRONTEND_CLUSTERS_IMPL_H
#define DSM_FRONTEND_CLUSTERS_IMPL_H

#include "frontend/clusters.h"

// cluster_tree.c: makes the tree of a `cluster` section. `files`: where its names are looked up
// beside itself; the built-in devices come last. NULL after errors.
const cl_cluster *cluster_make(arena *a, diags *d, const sema_program *files, const section *s,
                               const char *name);

// clusters.c: the parsed text of a built-in that defines this device, and the device's section;
// NULL: none does. And the names of all such devices.
const section *builtin_device(arena *a, const char *name);
int builtin_device_names(arena *a, const char **out, int most);

#endif
