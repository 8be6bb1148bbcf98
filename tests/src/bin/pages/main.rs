// SPDX-License-Identifier: Apache-2.0

//! Writes the manual pages and completion scripts of all programs, as their command lines are
//! defined, into a folder: `man/`, `bash/`, `zsh/`, `fish/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory, Parser};
use clap_complete::Shell;
use clap_mangen::Man;
use clat_tests::command_lines;

/// Writes manual pages and completion scripts.
#[derive(Parser)]
struct Args {
    /// The folder
    to: PathBuf,
}

fn main() -> Result<()> {
    let to = Args::parse().to;
    let man = to.join("man");
    fs::create_dir_all(&man)?;
    for (command, section) in command_lines() {
        pages(command.clone().disable_help_subcommand(true), section, &man)?;
        for (shell, folder) in [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")] {
            let folder = to.join(folder);
            fs::create_dir_all(&folder)?;
            let name = command.get_name().to_owned();
            clap_complete::generate_to(shell, &mut command.clone(), name, folder)?;
        }
    }
    configuration(&man)
}

/// The page of a command, and those of its subcommands, named "clatctl-start".
fn pages(mut command: Command, section: &str, man: &Path) -> Result<()> {
    command.build();
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        pages(subcommand.clone(), section, man)?;
    }
    let page = Man::new(command).section(section).source("clat").manual("clat");
    page.generate_to(man).map(drop).context("a manual page")
}

/// `clat.toml(5)`: the options of `clat_controller` once more, as a file has them.
fn configuration(man: &Path) -> Result<()> {
    const ABOUT: &str = "\
.SH NAME
clat.toml \\- configuration of clat_controller(8)
.SH DESCRIPTION
.I /etc/clat/clat.toml
is read by clat_controller(8) where it is there, or another file is with
.BR \\-\\-config .
It is TOML: each key is an option of the command line by its long name, without dashes in front.
An option without a value is true or false; false is what the option named \\fBno\\-\\fR says, where
there is one. An option that may be given more than once takes an array. What the command line says
goes before.
.PP
What is wrong is said with its line and column, and the controller does not start;
.B clat_controller \\-\\-check
says it without starting anything. On SIGHUP
.RB ( \"systemctl reload clat\" )
the file is read again:
.IR uplink ,
.I no-uplink
and
.I prefix
count at once, all else after a restart.
.SH EXAMPLE
.nf
auto = true
no-uplink = [\"eth1\", \"wwan*\"]
prefix = [\"eth0=64:ff9b::/96\"]
.fi
";
    let command = clat_controller::args::Args::command().name("clat.toml");
    let page = Man::new(command).title("clat.toml").section("5").source("clat").manual("clat");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    text.extend(ABOUT.as_bytes());
    page.render_options_section(&mut text)?;
    text.extend(b".SH SEE ALSO\nclat_controller(8), clatctl(1)\n");
    fs::write(man.join("clat.toml.5"), text).context("clat.toml.5")
}
