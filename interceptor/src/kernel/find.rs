//! Finding the cgroup of a systemd unit or a container by the names that engines give to cgroups.
//!
//! Paths here are those below the cgroup v2 mount point.

use std::path::{Component, Path, PathBuf};

use super::{Kernel, KernelError, cgroup};

/// Kinds of unit that have cgroups.
const UNIT_KINDS: [&str; 7] = [
    ".service", ".slice", ".scope", ".socket", ".mount", ".swap", ".device",
];

/// What engines put before the id where systemd makes the cgroup (`docker-ID.scope`), and podman everywhere.
const SCOPES: [&str; 8] = [
    "docker-",
    "libpod-payload-",
    "libpod-",
    "cri-containerd-",
    "crio-",
    "nerdctl-",
    "crun-",
    "runc-",
];

/// Beside a container runs its monitor, which isn't in it.
const MONITORS: [&str; 2] = ["libpod-conmon-", "crio-conmon-"];

/// Folders in which engines without systemd have containers under names that needn't be ids.
const PARENTS: [&str; 8] = [
    "",
    "crun",
    "runc",
    "default",
    "docker",
    "k8s.io",
    "libpod_parent",
    "moby",
];

/// Digits of the ids that docker, podman, containerd and Kubernetes give.
const ID_DIGITS: usize = 64;

/// Digits of an id that say which one is meant.
const ID_DIGITS_MIN: usize = 4;

/// Candidates that an error names.
const NAMED_MAX: usize = 5;

impl Kernel {
    /// The cgroup of a systemd unit, as a path in the file system.
    ///
    /// # Errors
    /// Where there is none, or more than one.
    pub fn cgroup_of_unit(&self, name: &str) -> Result<PathBuf, KernelError> {
        let unit = if UNIT_KINDS.iter().any(|kind| name.ends_with(kind)) {
            name.to_owned()
        } else {
            format!("{name}.service")
        };
        let all = self.cgroups_below();
        let found = units(&unit, &all);
        let missing = || {
            format!(
                "no cgroup is unit {unit}'s (looked at {} below {}): is it running? `systemctl status {unit}` tells; or give the cgroup itself",
                all.len(),
                self.cgroup2.display()
            )
        };
        self.the_one(&format!("unit {unit}"), &found, missing)
    }

    /// The cgroup of the container with this id, or with one that begins so, as a path in the file system.
    ///
    /// # Errors
    /// Where there is none, or more than one.
    pub fn cgroup_of_container(&self, id: &str) -> Result<PathBuf, KernelError> {
        let all = self.cgroups_below();
        let found = containers(id, &all);
        let missing = || {
            format!(
                "no cgroup is container {id}'s (looked at {} below {} for docker, podman, containerd, CRI-O and Kubernetes, crun and runc): is it running, and is it this host's? Give its id, `--pid` with a process of it, or the cgroup itself; with cgroup v1 engines keep containers where they can't be tagged",
                all.len(),
                self.cgroup2.display()
            )
        };
        self.the_one(&format!("container {id}"), &found, missing)
    }

    /// The paths of all cgroups.
    fn cgroups_below(&self) -> Vec<PathBuf> {
        let all = cgroup::with_below(&self.cgroup2).into_iter();
        all.filter_map(|path| Some(path.strip_prefix(&self.cgroup2).ok()?.to_owned()))
            .filter(|path| !path.as_os_str().is_empty())
            .collect()
    }

    fn the_one(
        &self,
        what: &str,
        found: &[&Path],
        missing: impl FnOnce() -> String,
    ) -> Result<PathBuf, KernelError> {
        match found {
            [] => Err(KernelError::Missing(missing())),
            [one] => Ok(self.cgroup2.join(one)),
            several => {
                let named = several.iter().take(NAMED_MAX);
                let named: Vec<String> = named.map(|path| path.display().to_string()).collect();
                Err(KernelError::Refused(format!(
                    "{} cgroups may be {what}'s: {}{}; give more of its id, or the one that you mean as the cgroup",
                    several.len(),
                    named.join(", "),
                    if several.len() > NAMED_MAX {
                        ", …"
                    } else {
                        ""
                    }
                )))
            }
        }
    }
}

/// The cgroups of `unit`: the system's, or, where it has none of that name, those of users' managers and of
/// containers that run systemd.
fn units<'a>(unit: &str, cgroups: &'a [PathBuf]) -> Vec<&'a Path> {
    let named = || {
        let all = cgroups.iter().map(PathBuf::as_path);
        all.filter(|path| path.file_name().is_some_and(|name| name == unit))
    };
    let is_systems = |path: &&Path| {
        let mut above = path.parent().into_iter().flat_map(Path::components);
        above.all(|part| part.as_os_str().as_encoded_bytes().ends_with(b".slice"))
    };
    let systems: Vec<&Path> = named().filter(is_systems).collect();
    if systems.is_empty() {
        named().collect()
    } else {
        systems
    }
}

/// The cgroups of containers whose id is `wanted` or begins with it. What is within one of them is its own.
fn containers<'a>(wanted: &str, cgroups: &'a [PathBuf]) -> Vec<&'a Path> {
    let all = || cgroups.iter().map(PathBuf::as_path);
    let by = |is_wanted: &dyn Fn(&str) -> bool| -> Vec<&'a Path> {
        let found: Vec<&Path> = all()
            .filter(|path| container(path).is_some_and(is_wanted))
            .collect();
        let outermost = |path: &&Path| {
            !found
                .iter()
                .any(|other| path != other && path.starts_with(other))
        };
        found.iter().copied().filter(outermost).collect()
    };
    let exact = by(&|id| id == wanted);
    let is_prefix = wanted.len() >= ID_DIGITS_MIN && is_hexadecimal(wanted);
    if !exact.is_empty() || !is_prefix {
        return exact;
    }
    by(&|id| is_id(id) && id.starts_with(wanted))
}

/// The id of the container that a cgroup is, as far as its name tells.
pub(super) fn container(cgroup: &Path) -> Option<&str> {
    let name = cgroup.file_name()?.to_str()?;
    if MONITORS.iter().any(|monitor| name.starts_with(monitor)) {
        return None;
    }
    // `kubepods-podUID.slice:cri-containerd:ID`, where containerd and the kubelet disagree about systemd.
    if let Some((_, id)) = name.rsplit_once(':') {
        return is_id(id).then_some(id);
    }
    let scope = name.strip_suffix(".scope");
    let bare = scope.unwrap_or(name);
    if let Some(id) = SCOPES.iter().find_map(|engine| bare.strip_prefix(engine)) {
        // Without systemd the prefix is part of the name, but of podman's.
        let is_podmans = bare.starts_with("libpod-");
        return (scope.is_some() || is_podmans).then_some(id);
    }
    if is_id(name) {
        return Some(name);
    }
    let parent: PathBuf = cgroup
        .parent()?
        .components()
        .filter(|part| *part != Component::RootDir)
        .collect();
    let is_engines = PARENTS.iter().any(|known| parent == Path::new(known));
    let is_unit = UNIT_KINDS.iter().any(|kind| name.ends_with(kind));
    (is_engines && !is_unit).then_some(name)
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && is_hexadecimal(text)
}

fn is_hexadecimal(text: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.bytes().all(is_digit)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{container, containers, units};

    const ID: &str = "3f4c9b1e6a7d8c5b2e1f0a9d8c7b6a594837261504f3e2d1c0b9a8f7e6d5c4b3";
    const OTHER: &str = "3f4caaaa6a7d8c5b2e1f0a9d8c7b6a594837261504f3e2d1c0b9a8f7e6d5c4b3";

    fn paths(all: &[&str]) -> Vec<PathBuf> {
        let with_ids = |path: &&str| path.replace("ID", ID).replace("OTHER", OTHER).into();
        all.iter().map(with_ids).collect()
    }

    #[test]
    fn containers_are_known_by_the_cgroups_that_engines_make() {
        for (engine, path) in [
            ("docker", "system.slice/docker-ID.scope"),
            ("docker, cgroupfs", "docker/ID"),
            ("docker, a parent of its own", "build.slice/docker-ID.scope"),
            ("docker, a parent of its own, cgroupfs", "builds/nightly/ID"),
            (
                "docker, rootless",
                "user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope",
            ),
            ("podman", "machine.slice/libpod-ID.scope"),
            ("podman, cgroupfs", "libpod_parent/libpod-ID"),
            (
                "podman, rootless",
                "user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
            ),
            (
                "podman, split",
                "system.slice/web.service/libpod-payload-ID",
            ),
            ("containerd", "system.slice/nerdctl-ID.scope"),
            ("containerd, cgroupfs", "default/ID"),
            (
                "Kubernetes, containerd",
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod8d1c.slice/cri-containerd-ID.scope",
            ),
            (
                "Kubernetes, CRI-O",
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod8d1c.slice/crio-ID.scope",
            ),
            (
                "Kubernetes, cgroupfs",
                "kubepods/burstable/pod8d1c0e2f-1111-2222-3333-444455556666/ID",
            ),
            (
                "Kubernetes, at odds about systemd",
                "system.slice/containerd.service/kubepods-besteffort-pod8d1c.slice:cri-containerd:ID",
            ),
        ] {
            let all = paths(&[
                path,
                "system.slice",
                "system.slice/docker.service",
                "docker",
            ]);
            assert_eq!(containers(ID, &all), [all[0].as_path()], "{engine}");
            assert_eq!(containers(&ID[..12], &all), [all[0].as_path()], "{engine}");
            assert!(containers(OTHER, &all).is_empty(), "{engine}");
        }
        for (runtime, path) in [
            ("crun", "crun-web.scope"),
            ("crun, cgroupfs", "web"),
            ("runc", "system.slice/runc-web.scope"),
            ("ctr", "default/web"),
        ] {
            let all = paths(&[path]);
            assert_eq!(containers("web", &all), [all[0].as_path()], "{runtime}");
        }
    }

    #[test]
    fn what_is_no_container_is_none() {
        for path in [
            "system.slice/web.service",
            "web.service",
            "user.slice/web",
            "machine.slice/libpod-conmon-ID.scope",
            "kubepods.slice/crio-conmon-ID.scope",
            "system.slice/docker-ID",
            "a:b:web",
            "",
        ] {
            let [path] = &paths(&[path])[..] else {
                unreachable!()
            };
            assert_eq!(container(path), None, "{}", path.display());
        }
    }

    #[test]
    fn a_prefix_is_of_one_container_or_of_several_and_what_is_inside_is_its_own() {
        let all = paths(&[
            "system.slice/docker-ID.scope",
            "system.slice/docker-ID.scope/docker/OTHER",
            "system.slice/docker-OTHER.scope",
            "machine.slice/libpod-ID.scope/container",
        ]);
        assert_eq!(
            containers("3f4c", &all),
            [all[0].as_path(), all[2].as_path()]
        );
        assert_eq!(containers("3f4c9", &all), [all[0].as_path()]);
        for nothing in ["", "3f4", "3F4C", "zzzz", "3f4c9/../"] {
            assert!(containers(nothing, &all).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn the_systems_units_come_before_those_of_users_and_containers() {
        let all = paths(&[
            "system.slice/web.service",
            "user.slice/user-1000.slice/user@1000.service/app.slice/web.service",
            "user.slice/user-1000.slice/user@1000.service/app.slice/mine.service",
            "system.slice/docker-ID.scope/system.slice/web.service",
            "system.slice/system-getty.slice/getty@tty1.service",
            "work.slice/work-batch.slice",
        ]);
        assert_eq!(units("web.service", &all), [all[0].as_path()]);
        assert_eq!(units("mine.service", &all), [all[2].as_path()]);
        assert_eq!(units("getty@tty1.service", &all), [all[4].as_path()]);
        assert_eq!(units("work-batch.slice", &all), [all[5].as_path()]);
        assert_eq!(units("web.service", &all[1..]).len(), 2);
        assert!(units("other.service", &all).is_empty());
    }
}
