//! Fuzzing without a C++ compiler: random mutations of the seeds, without coverage feedback.
//!
//! `mutate SECONDS_PER_TARGET [SEED] [TARGET]...`. The input that is about to run is kept in `artifacts/TARGET/last`,
//! so that one that ends the process can be run again: copy it to `regressions/TARGET/`.

use std::time::{Duration, Instant};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let mut args = env::args().skip(1);
    let seconds = args.next().and_then(|text| text.parse().ok()).unwrap_or(5);
    let seed = args.next().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let names: Vec<String> = args.collect();
    for (name, target) in stead_fuzz::TARGETS {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        let mut inputs = Vec::new();
        for dir in [format!("seeds/{name}"), format!("regressions/{name}")] {
            let Ok(files) = fs::read_dir(dir) else { continue };
            for file in files {
                inputs.push(fs::read(file?.path())?);
            }
        }
        inputs.sort();
        fs::create_dir_all(format!("artifacts/{name}"))?;
        let last = format!("artifacts/{name}/last");
        let mut rng = fastrand::Rng::with_seed(seed);
        let (started, mut runs) = (Instant::now(), 0u64);
        while started.elapsed() < Duration::from_secs(seconds) {
            let mut input = inputs.get(rng.usize(..inputs.len().max(1))).cloned().unwrap_or_default();
            mutate(&mut rng, &mut input, &inputs);
            fs::write(&last, &input)?;
            stead_fuzz::run(target, &input);
            runs += 1;
        }
        fs::remove_file(&last)?;
        eprintln!("{name}: {runs} inputs, seed {seed}");
    }
    Ok(())
}

fn mutate(rng: &mut fastrand::Rng, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    const LIKELY: [u8; 10] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b',', 0x9f, 0x1b];
    for _ in 0..rng.usize(1..8) {
        let at = rng.usize(..=input.len());
        match rng.u8(..6) {
            0 if at < input.len() => input[at] ^= 1 << rng.u8(..8),
            1 if at < input.len() => input[at] = LIKELY[rng.usize(..LIKELY.len())],
            2 => input.insert(at, rng.u8(..)),
            3 => {
                let end = (at + rng.usize(..16)).min(input.len());
                input.drain(at..end);
            }
            4 => {
                let end = (at + rng.usize(..32)).min(input.len());
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
            _ => {
                if let Some(other) = others.get(rng.usize(..others.len().max(1))) {
                    let from = rng.usize(..=other.len());
                    let until = (from + rng.usize(..64)).min(other.len());
                    input.splice(at..at, other[from..until].iter().copied());
                }
            }
        }
    }
}
