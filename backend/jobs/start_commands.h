// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The QMP commands that begin a job: blockdev-mirror, drive-mirror, x-vbdkit-migrate,
// blockdev-backup, drive-backup, block-commit, block-dirty-bitmap-clear. Arguments are QEMU's
// (qapi/block-core.json), but that a `target` of blockdev-… is a node spec, as there are no nodes
// that stand by themselves; an argument that QEMU has and that cannot be followed is refused.
// Thread: the reactor's; opening a target blocks. `jobs` outlives the commands.
#pragma once

#include "backend/control/qmp_server.h"
#include "backend/jobs/job_table.h"

namespace vbdkit::jobs {

void add_start_commands(control::CommandTable& commands, JobTable& jobs);

}  // namespace vbdkit::jobs
