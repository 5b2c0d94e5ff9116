//! Bundles that the settings of programs name: variables first, then the files that they read at start.

use std::{
    env,
    path::{Path, PathBuf},
};

use super::reach::Place;

/// Variables that name a bundle.
const VARIABLES: [&str; 17] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "PIP_CERT",
    "DENO_CERT",
    "PGSSLROOTCERT",
    "HTTPLIB2_CA_CERTS",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "NIX_SSL_CERT_FILE",
    "CARGO_HTTP_CAINFO",
    "BUNDLE_SSL_CA_CERT",
    "npm_config_cafile",
    "NPM_CONFIG_CAFILE",
];

/// Variables that name folders of certificates.
const FOLDERS: &str = "SSL_CERT_DIR";

/// Files of settings below the home folder or the present one, and what they call a bundle (in lower case).
const FILES: [(&str, &str); 16] = [
    (".gitconfig", "sslcainfo"),
    (".config/git/config", "sslcainfo"),
    (".git/config", "sslcainfo"),
    (".curlrc", "cacert"),
    (".config/.curlrc", "cacert"),
    (".npmrc", "cafile"),
    (".pip/pip.conf", "cert"),
    (".config/pip/pip.conf", "cert"),
    ("pip.conf", "cert"),
    (".wgetrc", "ca_certificate"),
    (".condarc", "ssl_verify"),
    (".boto", "ca_certificates_file"),
    (".aws/config", "ca_bundle"),
    (".config/gcloud/properties", "custom_ca_certs_file"),
    (".cargo/config.toml", "cainfo"),
    (".bundle/config", "bundle_ssl_ca_cert"),
];

/// Those of the whole system.
const OF_SYSTEM: [(&str, &str); 5] = [
    ("/etc/gitconfig", "sslcainfo"),
    ("/etc/pip.conf", "cert"),
    ("/etc/npmrc", "cafile"),
    ("/etc/wgetrc", "ca_certificate"),
    ("/etc/boto.cfg", "ca_certificates_file"),
];

/// A bundle by setting and not by name: libpq's.
const OF_POSTGRES: &str = ".postgresql/root.crt";

/// More than any file of settings has.
const BYTES_MAX: u64 = 256 << 10;

/// What is named by variables, with their names.
pub(super) fn variables() -> impl Iterator<Item = (&'static str, PathBuf)> {
    VARIABLES
        .into_iter()
        .filter_map(|name| Some((name, value(name)?.into())))
}

/// Folders that are named by variables.
pub(super) fn folders() -> Vec<PathBuf> {
    let list = value(FOLDERS).unwrap_or_default();
    env::split_paths(&list)
        .filter(|folder| folder.is_absolute())
        .collect()
}

/// A variable that says something.
pub(super) fn value(name: &str) -> Option<std::ffi::OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// What is named by files, of this `home` and of the present folder.
pub(super) fn files(home: Option<&Path>) -> Vec<PathBuf> {
    let here = env::current_dir().ok();
    let mut found: Vec<PathBuf> = home
        .map(|home| home.join(OF_POSTGRES))
        .into_iter()
        .collect();
    let environment = value("VIRTUAL_ENV").map(PathBuf::from);
    let below = [home, here.as_deref(), environment.as_deref()];
    let files = below
        .into_iter()
        .flatten()
        .flat_map(|folder| FILES.map(|(file, name)| (folder.join(file), name)))
        .chain(OF_SYSTEM.map(|(file, name)| (file.into(), name)));
    for (file, name) in files {
        let Ok(text) = Place::at(&file).and_then(|place| place.read(BYTES_MAX)) else {
            continue;
        };
        let text = String::from_utf8_lossy(&text);
        found.extend(text.lines().filter_map(|line| named(line, name, home)));
    }
    found
}

/// The path that a line sets `wanted` to, in all of these programs' ways to write that.
fn named(line: &str, wanted: &str, home: Option<&Path>) -> Option<PathBuf> {
    let is_between = |character: char| matches!(character, '=' | ':') || character.is_whitespace();
    let line = line.trim().trim_start_matches('-');
    let (name, value) = line.split_once(is_between)?;
    if !name.eq_ignore_ascii_case(wanted) {
        return None;
    }
    let value = value.trim_matches(is_between).trim_matches(['"', '\'']);
    let path = match value.strip_prefix("~/") {
        Some(rest) => home?.join(rest),
        None => value.into(),
    };
    path.is_absolute().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_are_found_in_the_settings_of_programs() {
        let home = Some(Path::new("/home/a"));
        for (line, name, path) in [
            ("\tsslCAInfo = /c/ca.pem", "sslcainfo", "/c/ca.pem"),
            ("cafile=/c/ca.pem", "cafile", "/c/ca.pem"),
            ("cert = ~/ca.pem", "cert", "/home/a/ca.pem"),
            ("--cacert \"/c/ca.pem\"", "cacert", "/c/ca.pem"),
            ("cacert: /c/ca.pem", "cacert", "/c/ca.pem"),
            ("cainfo = '/c/ca.pem'", "cainfo", "/c/ca.pem"),
        ] {
            assert_eq!(named(line, name, home), Some(path.into()), "{line}");
        }
        for line in ["cert: true", "cert = ca.pem", "# cert=/c", "key=/c", ""] {
            assert_eq!(named(line, "cert", home), None, "{line}");
        }
    }
}
