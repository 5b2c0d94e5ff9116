//! What is known of a process, from /proc.

use std::{fs, path::Path};

use interceptor_core::origin::Process;

/// Longest command line that is kept, in bytes: the kernel itself allows megabytes.
const ARGUMENTS_BYTES_MAX: usize = 8 << 10;

/// What can be read of process `pid` now. A process that is gone leaves the fields empty.
#[must_use]
pub fn describe_process(pid: u32, cgroup2: &Path) -> Process {
    let executable = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let mut line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.truncate(ARGUMENTS_BYTES_MAX);
    let arguments = line
        .split(|byte| *byte == 0)
        .filter(|argument| !argument.is_empty())
        .map(|argument| String::from_utf8_lossy(argument).into())
        .collect();
    let cgroup = super::cgroup::of_process(pid, cgroup2);
    let cgroup = cgroup
        .as_deref()
        .and_then(|path| path.strip_prefix(cgroup2).ok());
    Process {
        pid,
        uid: 0,
        executable: executable.map(|path| path.to_string_lossy().into()),
        arguments,
        cgroup: cgroup
            .map(|path| format!("/{}", path.display()).into())
            .unwrap_or_default(),
    }
}
