//! The `sodium-shim` binary. See [`sodium_shim`].

fn main() -> std::process::ExitCode {
    sodium_shim::run()
}
