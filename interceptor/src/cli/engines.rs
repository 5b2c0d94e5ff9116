//! Asking container engines which container has a name. They are run with the caller's own rights, here and
//! not in the daemon.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{display::inert, failed::Failed};

/// How long an engine may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Bytes of an answer that are read: what is said of one container is some ten kilobytes.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Programs that tell of a container, and how they are asked.
const INSPECTORS: [&str; 3] = ["docker", "podman", "nerdctl"];

/// The id of the container that the engines of this host call `name`; `None` where none of them knows it:
/// then it may be an id.
///
/// # Errors
/// Where there are several, or it can't be a name.
pub(super) fn container_id(name: &str) -> Result<Option<String>, Failed> {
    if !is_name(name) {
        return Err(Failed::because(format!(
            "`{}` is no name or id of a container: letters, digits, `_`, `.` and `-` are",
            inert(name)
        )));
    }
    // Two programs may be of one engine: an id counts once.
    let mut found: BTreeMap<String, &str> = BTreeMap::new();
    for engine in INSPECTORS {
        if let Ok(answer) = ask(engine, &["container", "inspect", name]) {
            found.extend(inspected(&answer).into_iter().map(|id| (id, engine)));
        }
    }
    // Kubernetes gives one name to containers of many pods.
    let exactly = format!("^{}$", name.replace('.', "\\."));
    if let Ok(answer) = ask("crictl", &["ps", "--output", "json", "--name", &exactly]) {
        found.extend(running(&answer).into_iter().map(|id| (id, "crictl")));
    }
    if found.len() > 1 {
        let each = found.iter().map(|(id, engine)| format!("{id} ({engine})"));
        let each: Vec<String> = each.collect();
        return Err(Failed::because(format!(
            "{} containers are named `{name}`: {}",
            found.len(),
            each.join(", ")
        ))
        .with_remedy("give the id of the one that you mean"));
    }
    Ok(found.into_keys().next())
}

/// As engines want them. Nothing of it can be taken for an option.
fn is_name(name: &str) -> bool {
    name.bytes()
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// The ids in an answer to `inspect`.
fn inspected(answer: &str) -> Vec<String> {
    let answer: Value = serde_json::from_str(answer).unwrap_or_default();
    let all = answer.as_array().into_iter().flatten();
    all.filter_map(|container| id(container.get("Id").or_else(|| container.get("ID"))?))
        .collect()
}

/// The ids in an answer to `crictl ps`.
fn running(answer: &str) -> Vec<String> {
    let answer: Value = serde_json::from_str(answer).unwrap_or_default();
    let all = answer.get("containers").and_then(Value::as_array);
    all.into_iter()
        .flatten()
        .filter_map(|container| id(container.get("id")?))
        .collect()
}

fn id(value: &Value) -> Option<String> {
    value.as_str().filter(|id| is_name(id)).map(str::to_owned)
}

/// What `program` prints, if it is there and finds something.
fn ask(program: &str, arguments: &[&str]) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let stdout = child.stdout.take();
    // Read meanwhile: what doesn't fit into the pipe would hold it up.
    let reader = thread::spawn(move || {
        let mut answer = String::new();
        match stdout {
            Some(stdout) => stdout
                .take(ANSWER_BYTES_MAX)
                .read_to_string(&mut answer)
                .map(|_| answer),
            None => Ok(answer),
        }
    });
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(LOOK_EVERY);
    };
    if !status.success() {
        return Err(io::Error::other("it doesn't know it"));
    }
    let read = reader.join();
    read.unwrap_or_else(|_| Err(io::Error::other("its answer can't be read")))
}

#[cfg(test)]
mod tests {
    use super::{inspected, is_name, running};

    #[test]
    fn answers_of_engines_name_ids() {
        let docker = r#"[{"Id": "3f4c", "Name": "/web", "State": {"Pid": 7}}]"#;
        assert_eq!(inspected(docker), ["3f4c"]);
        assert_eq!(inspected(r#"[{"ID": "3f4c"}]"#), ["3f4c"]);
        let crictl = r#"{"containers": [{"id": "a1", "metadata": {"name": "web"}}, {"id": "b2"}]}"#;
        assert_eq!(running(crictl), ["a1", "b2"]);
        for nothing in [
            "",
            "[]",
            "{}",
            "null",
            "[{\"Id\": 7}]",
            "[{\"Id\": \"../x\"}]",
        ] {
            assert!(inspected(nothing).is_empty(), "{nothing}");
            assert!(running(nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn no_name_is_an_option_or_a_path() {
        for name in ["web", "3f4c", "web_1.a-b"] {
            assert!(is_name(name), "{name}");
        }
        for other in ["", "-v", "--help", "a/b", "../a", "a b", "a;b", "ä"] {
            assert!(!is_name(other), "{other}");
        }
    }
}
