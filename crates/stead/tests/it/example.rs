//! The programs of this package's examples. The tests of other packages include this file, too.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns an example's program. `cargo test` builds it with the tests, unless it builds only one of them: a program
/// that is missing or older than its sources is built here, with these features of the package.
pub(crate) fn example(name: &str, features: &[&str]) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let built = tests.ancestors().nth(2).unwrap();
    let program = built.join("examples").join(name);
    if !is_fresh(&program) {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--offline", "--quiet", "--package", env!("CARGO_PKG_NAME"), "--example", name]);
        features.iter().for_each(|feature| {
            cargo.args(["--features", feature]);
        });
        cargo.arg("--target-dir").arg(built.parent().unwrap());
        assert!(cargo.status().unwrap().success(), "the example {name} cannot be built");
    }
    program
}

/// Whether a program is as new as all its sources, according to the list that cargo leaves beside it.
fn is_fresh(program: &Path) -> bool {
    let time = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    let (Some(built), Ok(list)) = (time(program), std::fs::read_to_string(program.with_extension("d")))
    else {
        return false;
    };
    let sources = list.split_once(": ").map_or("", |(_, sources)| sources).split_whitespace();
    // Otherwise it is of another checkout.
    let own = |source: &str| source.starts_with(env!("CARGO_MANIFEST_DIR"));
    sources.clone().any(own)
        && sources.map(Path::new).all(|source| time(source).is_some_and(|time| time <= built))
}
