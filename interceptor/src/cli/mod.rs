//! The command line: a file a subcommand.
//!
//! Data goes to stdout, messages to stderr. Whatever an agent could have written is shown through
//! [`display::inert`].

mod agents;
mod approvals;
mod ca;
mod client;
mod completions;
mod console;
mod display;
mod doctor;
mod engines;
mod export;
mod failed;
mod journal;
mod launch;
mod offline;
mod policy;
mod progress;
mod replay;
mod run;
mod serve;
mod sessions;
mod status;
mod tag;
mod tail;
mod timeline;
mod verify;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};

use self::{client::Client, failed::Failed};
use crate::{config::Config, proxy};

/// Guards AI agents: everything a tagged cgroup connects to is decoded, decided, masked and recorded.
#[derive(Debug, Parser)]
#[command(
    name = "interceptor",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Exit status: 0 fine, 1 failed, 2 usage, 3 degraded, 4 policy invalid, 5 integrity, \
                  124 waited too long; `run` gives its command's."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Global {
    /// Configuration file [default: /etc/interceptor/interceptor.yaml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon's control socket [default: /run/interceptor/control.sock]
    #[arg(long, global = true, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// How data is printed
    // No long form: `export --output` is a file, as it is everywhere else.
    #[arg(id = "as", short = 'o', global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// What encrypted sessions of a state folder are read with, without the daemon [default: encryption.key in it]
    #[arg(long, global = true, value_name = "FILE")]
    encryption_key: Option<PathBuf>,
    /// Print without colours, as with NO_COLOR set
    #[arg(long, global = true)]
    no_color: bool,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs: a document, or a line each where it goes on.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Arguments),
    Run(run::Arguments),
    #[command(subcommand)]
    Tag(tag::Command),
    Agents(agents::Arguments),
    Sessions(sessions::Arguments),
    Approvals(approvals::Arguments),
    #[command(subcommand)]
    Policy(policy::Command),
    Export(export::Arguments),
    Verify(verify::Arguments),
    #[command(subcommand)]
    Journal(journal::Command),
    #[command(subcommand)]
    Ca(ca::Command),
    Status(status::Arguments),
    Doctor(doctor::Arguments),
    Completions(completions::Arguments),
    #[command(hide = true)]
    Man(completions::ManArguments),
    #[command(hide = true)]
    Launch(launch::Arguments),
    #[command(subcommand)]
    Console(console::Command),
    /// The process that serves the console
    #[command(hide = true, name = crate::console::COMMAND)]
    ConsoleServer,
    /// The process that carries the daemon's sessions
    #[command(hide = true, name = proxy::COMMAND)]
    Proxy,
}

/// What every subcommand works with.
#[derive(Debug)]
struct Context {
    config: Config,
    client: Client,
    /// Whether the control socket was named on the command line.
    control_given: bool,
    /// The file with what encrypted sessions are read with, where one was named.
    encryption_key: Option<PathBuf>,
    output: Output,
    /// Whether stdout shows colours.
    color: bool,
    /// Whether colours are wanted where there is a terminal.
    may_color: bool,
}

/// What a subcommand ends with: the exit status, or what is said on stderr.
type Outcome = Result<ExitCode, Failed>;

/// Parses the command line and runs it.
#[must_use]
pub fn main() -> ExitCode {
    main_with(std::env::args_os())
}

fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout, usage errors to stderr; a closed pipe is nobody's fault.
            _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(failed) => failed.report(),
    }
}

fn dispatch(cli: Cli) -> Outcome {
    match cli.command {
        // These need no configuration, and `launch` must not depend on one.
        Command::Completions(arguments) => return completions::run(&arguments),
        Command::Man(arguments) => return completions::man(&arguments),
        Command::Launch(arguments) => return launch::run(arguments),
        Command::ConsoleServer => {
            crate::console::run().map_err(Failed::because)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Proxy => {
            proxy::run().map_err(Failed::because)?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let context = Context::new(cli.global)?;
    match cli.command {
        Command::Serve(arguments) => serve::run(&context, arguments),
        Command::Run(arguments) => run::run(&context, arguments),
        Command::Tag(command) => tag::run(&context, command),
        Command::Agents(arguments) => agents::run(&context, &arguments),
        Command::Sessions(arguments) => sessions::run(&context, arguments),
        Command::Approvals(arguments) => approvals::run(&context, arguments),
        Command::Policy(command) => policy::run(&context, &command),
        Command::Console(command) => console::run(&context, &command),
        Command::Export(arguments) => export::run(&context, &arguments),
        Command::Verify(arguments) => verify::run(&context, &arguments),
        Command::Journal(command) => journal::run(&context, command),
        Command::Ca(command) => ca::run(&context, &command),
        Command::Status(arguments) => status::run(&context, &arguments),
        Command::Doctor(arguments) => doctor::run(&context, &arguments),
        Command::Completions(_)
        | Command::Man(_)
        | Command::Launch(_)
        | Command::Proxy
        | Command::ConsoleServer => Ok(ExitCode::SUCCESS),
    }
}

impl Context {
    fn new(global: Global) -> Result<Self, Failed> {
        let mut config = Config::load(global.config.as_deref())?;
        let control_given = global.control.is_some();
        if let Some(control) = global.control {
            config.control = control;
        }
        let client = Client::new(config.control.clone())?;
        let may_color =
            !global.no_color && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(Self {
            config,
            client,
            control_given,
            encryption_key: global.encryption_key,
            output: global.output,
            color: may_color && io::stdout().is_terminal(),
            may_color,
        })
    }

    fn is_json(&self) -> bool {
        self.output == Output::Json
    }

    /// Prints `value` as a JSON document.
    fn print_json(&self, value: &impl serde::Serialize) -> Outcome {
        let text = serde_json::to_string_pretty(value).map_err(Failed::because)?;
        display::print(&format!("{text}\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests;
