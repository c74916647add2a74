// SPDX-License-Identifier: LGPL-2.1-or-later
//
// One process runs per disk, and most are idle: what only their start needed shall not count. Takes
// the pages of program code and constants out of this process's memory; those that are used again
// come back from the page cache, a microsecond each, and nothing is read from storage. Writable
// pages, relocated ones among them, are left alone. (A debugger's breakpoints are lost with their
// pages.) Any thread.
#pragma once

namespace vbdkit {

[[gnu::cold]] void release_code_pages();

}  // namespace vbdkit
