//! `clatctl`: see the library.

fn main() -> std::process::ExitCode {
    clatctl::run()
}
