//! Rules on the DNS: what they may ask of a question, and what has no place in them.

use serde_saphyr::Spanned;

use super::Compiler;
use crate::{
    glob::Glob,
    operation::{Protocol, dns},
    policy::{
        dns::{Distinct, DnsMatch},
        error::unknown,
        file::{ActionSpec, DnsSpec, OneOrMany, RuleSpec},
    },
};

impl Compiler {
    /// Whether the rule is for DNS alone; then it has nothing that is for other protocols.
    pub(super) fn dns_only(&mut self, file: &str, spec: &RuleSpec) -> bool {
        let matches = &spec.r#match;
        let protocol = matches.protocol.as_ref();
        let is_dns = protocol.is_some_and(|spec| spec.value == Protocol::Dns.name());
        if let (Some(dns), Some(_), false) = (&matches.dns, protocol, is_dns) {
            let what = "`dns` is for questions to the DNS, and this rule for another protocol: it would never match; set `protocol: dns`";
            self.problem(file, dns.referenced, what);
        }
        let is_dns = is_dns || matches.dns.is_some();
        if !is_dns {
            return false;
        }
        if let Some(http) = &matches.http {
            let what =
                "what asks the DNS is no HTTP request: the rule would never match; make two of it";
            self.problem(file, http.referenced, what);
        }
        if let Some(mask) = spec.mask.first() {
            let what = "answers of the DNS aren't masked: clients would connect to nowhere; deny the name, or leave the mask out";
            self.problem(file, mask.referenced, what);
        }
        if let Some(rewrite) = &spec.rewrite {
            let what = "a question to the DNS goes on as it was asked; leave the rewrite out";
            self.problem(file, rewrite.referenced, what);
        }
        true
    }

    pub(super) fn dns(
        &mut self,
        file: &str,
        spec: &Spanned<DnsSpec>,
        action: ActionSpec,
    ) -> DnsMatch {
        let spec = &spec.value;
        let globs = |texts: Vec<String>| texts.iter().map(|text| Glob::new(text)).collect();
        DnsMatch {
            names: spec
                .name
                .as_ref()
                .map(|spec| globs(self.dns_names(file, spec))),
            types: spec
                .r#type
                .as_ref()
                .map(|spec| globs(self.dns_types(file, spec))),
            options: spec
                .option
                .as_ref()
                .map(|spec| globs(self.dns_options(file, spec))),
            longer_than: spec
                .longer_than
                .as_ref()
                .map(|spec| self.fewer(file, spec, dns::NAME_BYTES_MAX, "a name")),
            label_longer_than: spec
                .label_longer_than
                .as_ref()
                .map(|spec| self.fewer(file, spec, dns::LABEL_BYTES_MAX, "a label")),
            entropy_over: spec.entropy_over.as_ref().map(|spec| {
                if !(0.0..8.0).contains(&spec.value) {
                    let what = format!(
                        "`{}` is no entropy that a name could be over: a byte has 8 bits at most, words have 2 to 4 a character, data in base 32 has 4 to 5",
                        spec.value
                    );
                    self.problem(file, spec.referenced, what);
                }
                spec.value
            }),
            distinct: spec.distinct.as_ref().and_then(|spec| {
                if action == ActionSpec::Allow {
                    self.problem(
                        file,
                        spec.referenced,
                        "`distinct` tells what is too much, and a rule that allows would let exactly that by; set `action: deny` or `hold`",
                    );
                }
                Some(Distinct::new(spec.value.over, self.per(file, spec)?))
            }),
        }
    }

    /// Patterns for names in the DNS, as names are compared: lower case, without the last dot.
    fn dns_names(&mut self, file: &str, spec: &Spanned<OneOrMany>) -> Vec<String> {
        let texts = self.texts(file, spec);
        let mut patterns = Vec::new();
        for text in texts {
            let pattern = match text.strip_suffix('.') {
                Some(name) if !name.is_empty() => name.to_ascii_lowercase(),
                _ => text.to_ascii_lowercase(),
            };
            let what = if !pattern.bytes().all(|byte| byte.is_ascii_graphic()) {
                Some("names are asked for in ASCII; write `xn--…` for others")
            } else if pattern.is_empty() {
                Some("the root is `.`, and any name `*`")
            } else if pattern != "." && (pattern.starts_with('.') || pattern.contains("..")) {
                Some("`*.example.com` is what is below a name, `example.com` the name itself")
            } else {
                None
            };
            if let Some(what) = what {
                let what = format!("`{}` is no name: {what}", text.escape_debug());
                self.problem(file, spec.referenced, what);
            }
            patterns.push(pattern);
        }
        patterns
    }

    /// Patterns for types of records, each of which there is.
    fn dns_types(&mut self, file: &str, spec: &Spanned<OneOrMany>) -> Vec<String> {
        let texts = self.texts(file, spec);
        let types: Vec<_> = texts.iter().map(|text| text.to_ascii_uppercase()).collect();
        for kind in &types {
            let glob = Glob::new(kind);
            if !(0..=u16::MAX).any(|number| glob.matches(&dns::type_name(number))) {
                let what = unknown("type of record", kind, dns::type_names());
                self.problem(file, spec.referenced, what);
            }
        }
        types
    }

    /// Patterns for EDNS options, each of which may be there.
    fn dns_options(&mut self, file: &str, spec: &Spanned<OneOrMany>) -> Vec<String> {
        let texts = self.texts(file, spec);
        let names = || dns::OPTIONS.iter().map(|(_, name)| *name);
        for text in &texts {
            let glob = Glob::new(text);
            if !names().any(|name| glob.matches(name)) {
                self.problem(file, spec.referenced, unknown("EDNS option", text, names()));
            }
        }
        texts
    }

    /// A number of bytes that `what` can have more of.
    fn fewer(&mut self, file: &str, spec: &Spanned<u64>, most: usize, what: &str) -> usize {
        let bytes = usize::try_from(spec.value).unwrap_or(usize::MAX);
        if bytes >= most {
            let what = format!("{what} has {most} bytes at most, so none is longer than {bytes}");
            self.problem(file, spec.referenced, what);
        }
        bytes
    }
}
