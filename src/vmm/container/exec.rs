//! `vmm exec`: one more process in a container that runs.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use ::container::register::Container;
use ::container::session::Session;
use clap::Args;
use machine::signals::Signals;
use protocol::message::{Exec, Order};

use super::attach::{self, AttachError, Ends};
use super::options::own_values;
use super::run::{NO_TERMINAL, complain, failed};
use super::verbs::find;

/// What `vmm exec` takes.
#[derive(Debug, Clone, Args)]
#[command(max_term_width = 110, arg_required_else_help = true)]
pub struct ExecArgs {
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable of the environment; without a value, to this process's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// User, and group, of the image or by number [default: the container's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// The container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Program and arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs a process to its end.
pub fn exec(args: &ExecArgs) -> ExitCode {
    if args.interactive && args.tty && !io::stdin().is_terminal() {
        return failed(NO_TERMINAL);
    }
    let ended = find(&args.container).and_then(|container| {
        let signals = Signals::block(&attach::SIGNALS).map_err(|error| format!("block signals: {error}"))?;
        Ok(attend(args, &container, signals))
    });
    match ended {
        Err(why) => failed(&why),
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(error)) => {
            complain(&error.to_string());
            ExitCode::from(error.status())
        }
    }
}

fn attend(args: &ExecArgs, container: &Container, signals: Signals) -> Result<u8, AttachError> {
    let not_there = |error| AttachError::Failed(protocol::message::Failure::engine(format!("{error}")));
    let mut session = Session::call(container.socket().map_err(not_there)?)?;
    session.say(&Order::Exec(Box::new(Exec {
        id: container.record.name.clone(),
        args: args.command.clone(),
        env: own_values(args.env.clone()),
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        terminal: args.tty.then(attach::window),
        stdin: args.interactive,
    })))?;
    let mut ends = Ends { stdin: args.interactive, terminal: args.tty, signals: Some(signals), ..Ends::default() };
    ends.attach(session, || ()).map(|exit| exit.code)
}
