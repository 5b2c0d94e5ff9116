//! Builds the kernel programs and leaves the object in OUT_DIR.
//!
//! They need a compiler with `core` for BPF: Debian's packaged one (its BPF library is a package of its
//! own), else a rustup nightly with rust-src. Where neither is found the error names the two commands
//! that install the first.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";

const REMEDY: &str = "the eBPF toolchain is missing; as root, run
    apt-get install -y --no-install-recommends rustc-web libstd-rust-web-dev-bpf
    cargo install bpf-linker --version 0.10.0 --locked
(or `cargo xtask setup`, which does both)";

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let source = manifest.join("../interceptor-ebpf");
    for path in [
        "src",
        "abi/src",
        "abi/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo:rerun-if-changed={}", source.join(path).display());
    }
    if let Err(why) = build(&source, &out) {
        println!("cargo:warning=the kernel programs were not built");
        eprintln!("error: {why}");
        std::process::exit(1);
    }
}

fn build(source: &Path, out: &Path) -> Result<(), String> {
    let linker =
        find("bpf-linker").ok_or_else(|| format!("bpf-linker is not on PATH: {REMEDY}"))?;
    let packaged = packaged_compiler();
    let mut cargo = match &packaged {
        Some(_) => Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
        // The outer build's cargo is a stable one, which refuses -Z.
        None => {
            let mut rustup = Command::new("rustup");
            rustup.args(["run", "nightly", "cargo"]);
            rustup
        }
    };
    cargo
        .current_dir(source)
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(out.join("ebpf"));
    // What the outer build was told must not reach the inner one.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        // Where crates come from, and whether the network may be used, stays as it was told.
        let fetching = ["HOME", "HTTP_", "NET_", "REGISTR", "SOURCE_"];
        let inherited = text
            .strip_prefix("CARGO_")
            .is_some_and(|rest| !fetching.iter().any(|start| rest.starts_with(start)));
        if inherited
            || matches!(
                &*text,
                "RUSTFLAGS" | "RUSTC" | "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER" | "TARGET"
            )
        {
            cargo.env_remove(&name);
        }
    }
    match packaged {
        // The packaged compiler is a stable one; aya-ebpf uses features that are not.
        Some(rustc) => cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1"),
        None if nightly_has_source() => cargo.args(["-Z", "build-std=core"]),
        None => return Err(format!("no compiler has `core` for {TARGET}: {REMEDY}")),
    };
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| "x86_64".to_owned());
    let cfg = format!("bpf_target_arch=\"{arch}\"");
    let flags = ["-Clink-arg=--btf", "-Cdebuginfo=2", "--cfg", cfg.as_str()];
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    let output = cargo
        .output()
        .map_err(|error| format!("cargo can't be run: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "the kernel programs don't build:\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let built = out
        .join("ebpf")
        .join(TARGET)
        .join("release/interceptor-ebpf");
    fs::copy(&built, out.join("interceptor-ebpf"))
        .map(drop)
        .map_err(|error| format!("{}: {error}", built.display()))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    env::split_paths(&path)
        .chain(home.map(|home| home.join("bin")))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// Debian's rustc, where its BPF library is installed.
fn packaged_compiler() -> Option<PathBuf> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let output = Command::new(&rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .env_remove("RUSTUP_TOOLCHAIN")
        .output()
        .ok()?;
    let folder = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    let has_core = fs::read_dir(folder)
        .ok()?
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"));
    has_core.then_some(rustc)
}

fn nightly_has_source() -> bool {
    let output = Command::new("rustc")
        .arg("+nightly")
        .args(["--print", "sysroot"])
        .output();
    let Ok(output) = output else { return false };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    output.status.success() && sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
}
