/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A disk plugin of libxl that does what the disk's target says, call by call, to see what becomes
 * of it: "validate=crash", "start=hang"... Every other call succeeds.
 */
#include <libxl_disk_plugin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int behave(const char* call, const struct libxl_disk_plugin_disk* disk,
                  const struct libxl_disk_plugin_host* host) {
  const size_t length = strlen(call);
  printf("test plugin: %s %s\n", call, disk->vdev);
  fflush(stdout);
  if (strncmp(disk->target, call, length) != 0 || disk->target[length] != '=') return 0;
  const char* what = disk->target + length + 1;
  if (strcmp(what, "crash") == 0) abort();
  if (strcmp(what, "exit") == 0) exit(0);
  if (strcmp(what, "fail") == 0) return -1;
  while (strcmp(what, "hang") == 0) pause();
  host->error(host, "told to say\n%s", what);
  return -1;
}

static int validate(const struct libxl_disk_plugin_disk* disk,
                    const struct libxl_disk_plugin_host* host) {
  return behave("validate", disk, host);
}

static int start(const struct libxl_disk_plugin_disk* disk,
                 const struct libxl_disk_plugin_host* host) {
  host->local_path(host, disk->backend_path);
  return behave("start", disk, host);
}

static int stop(const struct libxl_disk_plugin_disk* disk,
                const struct libxl_disk_plugin_host* host) {
  return behave("stop", disk, host);
}

static const char* const kFormats[] = {"raw", "odd", NULL};

const struct libxl_disk_plugin libxl_disk_plugin = {
    .abi = LIBXL_DISK_PLUGIN_ABI,
    .size = sizeof(struct libxl_disk_plugin),
    .formats = kFormats,
    .validate = validate,
    .start = start,
    .stop = stop,
};
