//! The command line as it is typed.

use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn what_the_documentation_shows_parses() {
    for line in [
        "interceptor serve",
        "interceptor serve --policies policies --state /tmp/s --instance it-1_x --remove-hooks --control /c.sock",
        "interceptor policy check policies/starter.yaml",
        "interceptor policy test policies",
        "interceptor policy reload",
        "interceptor policy explain --session 00000000000000ff --operation 3",
        "interceptor policy explain --session 00000000000000ff --operation 3 --state /path/to/copy new.yaml",
        "interceptor policy explain new.yaml --protocol http --statement x --agent a --label team=data --host h --at 7d",
        "interceptor policy explain new.yaml --protocol postgres --action SELECT --effect read --destination 192.0.2.1:5432",
        "interceptor policy explain new.yaml --case case.yaml",
        "interceptor policy replay --since 7d new.yaml",
        "interceptor policy replay --agent reporter --limit 0 --fail-on-change --state /path/to/copy new.yaml",
        "interceptor policy suggest --agent reporter --since 7d --output reporter.yaml",
        "interceptor policy observed --since 7d --agent reporter -o json",
        "interceptor run --agent reporter --label team=data --label tier=1 --user nobody -- python -c x --help",
        "interceptor tag add /sys/fs/cgroup/my.slice --agent batch",
        "interceptor tag add --pid 4242 --agent reporter --label team=data",
        "interceptor tag add --unit worker.service --agent worker",
        "interceptor tag add --container 3f4c9b1e6a7d --agent build",
        "interceptor tag list",
        "interceptor tag remove batch",
        "interceptor agents",
        "interceptor agents list -o json",
        "interceptor --control /c.sock sessions",
        "interceptor sessions list --agent a --limit 5",
        "interceptor sessions show 00000000000000ff --rows 3",
        "interceptor sessions tail --agent a",
        "interceptor approvals",
        "interceptor approvals list --all",
        "interceptor approvals show 00000000000000ff",
        "interceptor approvals approve 00000000000000ff --reason fine",
        "interceptor approvals deny 00000000000000ff",
        "interceptor approvals watch --no-color",
        "interceptor export --format jsonl --output audit.jsonl --since 7d --until 2026-11-20T22:07:01Z",
        "interceptor export --session 00000000000000ff",
        "interceptor export --format asciicast --pause-max 1m",
        "interceptor verify",
        "interceptor verify /path/to/copy --key journal.pub",
        "interceptor journal rotate-key --reason yearly",
        "interceptor status -o json",
        "interceptor completions bash",
        "interceptor man /tmp/man",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn usage_errors_end_with_2_and_say_what_is_right() {
    for (line, said) in [
        (
            "interceptor tag add --agent a",
            "<CGROUP|--pid <PID>|--unit <UNIT>|--container <ID|NAME>>",
        ),
        (
            "interceptor tag add /x --pid 1 --agent a",
            "cannot be used with",
        ),
        ("interceptor tag add /x --agent a/b", "can't name an agent"),
        ("interceptor tag add --pid 0 --agent a", "0 is not in 1.."),
        (
            "interceptor run --agent a --label team -- x",
            "`team=billing` is",
        ),
        ("interceptor run --agent a", "<CMD>..."),
        ("interceptor approvals approve 12", "16 hexadecimal digits"),
        (
            "interceptor export --format xml",
            "[possible values: jsonl, csv, html, soc2, ocsf, har, pcapng, evidence, asciicast]",
        ),
        ("interceptor export --since tomorrow", "7d"),
        ("interceptor export --pause-max long", "2s is"),
        (
            "interceptor policy explain --session 00000000000000ff",
            "--operation <N>",
        ),
        (
            "interceptor policy explain --session 00000000000000ff --operation 1 --statement x",
            "cannot be used with",
        ),
        ("interceptor policy suggest", "--agent <NAME>"),
        ("interceptor journal rotate-key", "--reason <TEXT>"),
        ("interceptor agnets", "similar"),
        ("interceptor serve --instance a/b", "can't name an instance"),
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(said), "{line}: {error}");
    }
}

#[test]
fn hidden_commands_are_hidden() {
    let help = Cli::command().render_long_help().to_string();
    assert!(!help.contains("launch"), "{help}");
    assert!(!help.contains("  man"), "{help}");
}

#[test]
fn every_subcommand_says_what_it_is_for() {
    for command in Cli::command().get_subcommands() {
        assert!(
            command.get_about().is_some(),
            "{} says nothing",
            command.get_name()
        );
    }
}
