//! Every committed input, once: the seeds, and what a fuzzer found.

use std::path::Path;

#[test]
fn committed_inputs_hold() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut runs = 0;
    for (name, target) in stead_fuzz::TARGETS {
        let mut seeded = false;
        for set in ["seeds", "regressions"] {
            let Ok(files) = std::fs::read_dir(root.join(set).join(name)) else { continue };
            for file in files {
                let path = file.unwrap().path();
                println!("{}", path.display());
                stead_fuzz::run(target, &std::fs::read(path).unwrap());
                runs += 1;
                seeded |= set == "seeds";
            }
        }
        assert!(seeded, "{name} has no seeds");
    }
    assert!(runs >= stead_fuzz::TARGETS.len());
}

#[test]
fn the_seeds_are_what_the_encoders_write() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (target, name, bytes) in stead_fuzz::seeds::all() {
        let path = root.join("seeds").join(target).join(name);
        if std::env::var_os("STEAD_WRITE_SEEDS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let committed = std::fs::read(&path).unwrap_or_default();
        assert!(
            committed == bytes,
            "{} is outdated: a format changed; STEAD_WRITE_SEEDS=1 writes it",
            path.display()
        );
    }
}
