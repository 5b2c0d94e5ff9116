//! What a result was measured with.

use std::{fs, process::Command};

use serde_json::{Map, Value};

use crate::shell::command;

/// The versions of this repository, the compiler, the kernel and the processor, and the first line that
/// each of `programs` prints of itself.
pub(super) fn versions<'a>(
    programs: impl IntoIterator<Item = (&'a str, &'a mut Command)>,
) -> Value {
    let mut versions = Map::new();
    let mut add =
        |name: &str, version: Option<String>| versions.insert(name.to_owned(), version.into());
    add(
        "interceptor",
        of(command("git").args(["describe", "--always", "--dirty"])),
    );
    for (name, program) in programs {
        add(name, of(program));
    }
    add("rustc", of(command("rustc").arg("--version")));
    add("kernel", of(command("uname").arg("-r")));
    let processor = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map(|(_, name)| name.to_owned())
    });
    add("processor", processor);
    let processors = std::thread::available_parallelism().ok().map(usize::from);
    versions.insert("processors".to_owned(), processors.into());
    Value::Object(versions)
}

/// Some programs say it to standard error, and wrk calls that a failure.
fn of(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&said);
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .map(str::to_owned)
}
