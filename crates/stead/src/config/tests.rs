//! Configurations from files and variables: accepted, refused, and hints for misspelt ones.

use super::variables::{TABLES, with_hints};
use super::*;

fn vars(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn variables_stand_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stead.toml");
    std::fs::write(&path, "threads = 2\n[checkpoints]\ninterval = \"5s\"\n[services.bank]\nshards = 4\n")
        .unwrap();
    let env = vars(&[
        ("STEAD_CFG_THREADS", "3"),
        ("STEAD_CFG_TASK_STEP_TIMEOUT", "2h"),
        ("STEAD_CFG_SHUTDOWN_TIMEOUT", "3s"),
        ("STEAD_CFG_MEMORY_BYTES_MAX", "8388608"),
        ("STEAD_CFG_CHECKPOINTS_KEEP", "7"),
        ("STEAD_CFG_CHECKPOINTS_COPY_TO", "s3://bucket/prefix"),
        ("STEAD_CFG_CHECKPOINTS_COPY_INTERVAL", "1m"),
        ("STEAD_CFG_CHECKPOINTS_COPY_KEEP", "30"),
        ("STEAD_CFG_SERVICES_BANK_SESSION_TTL", "2m"),
        ("STEAD_CFG_DATA_DIR", "5"),
        ("HOME", "/"),
    ]);
    let config = Config::from_file_and_vars(Some(&path), env).unwrap();
    assert_eq!(config.threads, Some(3));
    assert_eq!(config.task_step_timeout, Some(Duration::from_secs(7200)));
    assert_eq!(config.shutdown_timeout, Some(Duration::from_secs(3)));
    assert_eq!(config.data_dir, Some(PathBuf::from("5")));
    assert_eq!(config.checkpoints.interval, Some(Interval::Every(Duration::from_secs(5))));
    assert_eq!(config.memory, MemoryConfig { bytes_max: Some(8 << 20), uncommitted_bytes_max: None });
    assert_eq!(config.checkpoints.keep, Some(7));
    assert_eq!(config.checkpoints.copy_to.as_deref(), Some("s3://bucket/prefix"));
    assert_eq!(config.checkpoints.copy_interval, Some(Duration::from_secs(60)));
    assert_eq!(config.checkpoints.copy_keep, Some(30));
    let bank = &config.services["bank"];
    assert_eq!((bank.shards, bank.session_ttl), (Some(4), Some(Duration::from_secs(120))));
    let off = vars(&[("STEAD_CFG_CHECKPOINTS_INTERVAL", "off")]);
    let config = Config::from_file_and_vars(Some(&path), off).unwrap();
    assert_eq!(config.checkpoints.interval, Some(Interval::Off));
}

#[test]
fn every_key_has_a_variable() {
    let fields = |table: &str| -> Vec<String> {
        let error = Config::from_toml(&format!("{table}\nnone = 1"), "test").unwrap_err().to_string();
        let known = error.split("expected one of ").nth(1).or_else(|| error.split("expected ").nth(1));
        known.unwrap().split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let tables: [(&str, &[&str]); 5] = [
        ("", &[]),
        ("[memory]", &["memory"]),
        ("[log]", &["log"]),
        ("[checkpoints]", &["checkpoints"]),
        ("[services.a]", &["services", "a"]),
    ];
    for (table, parts) in tables {
        let keys = fields(table);
        assert!(!keys.is_empty());
        for key in keys.into_iter().filter(|key| !TABLES.contains(&key.as_str())) {
            let path: Vec<String> = parts.iter().map(|part| (*part).to_owned()).chain([key]).collect();
            assert_eq!(path_of(&path.join("_").to_ascii_uppercase()), Some(path));
        }
    }
    let both = vars(&[("STEAD_CFG_CLOCK_CONFIRM", "1m"), ("STEAD_CFG_SUSPECT_FOR", "2s")]);
    let config = Config::from_file_and_vars(None, both).unwrap();
    let seconds = |time: Option<Duration>| time.unwrap().as_secs();
    assert_eq!((seconds(config.clock_confirm), seconds(config.suspect_for)), (60, 2));
}

#[test]
fn a_dial_is_read_and_an_impossible_one_is_refused() {
    let bank = |text: &str| {
        let config = Config::from_toml(&format!("[services.bank]\n{text}"), "test");
        config.map_err(|error| error.to_string()).map(|mut config| config.services.remove("bank").unwrap())
    };
    let dial = |text: &str| bank(text)?.dial("bank").map_err(|error| error.to_string());
    let set = dial("replicas = 3\nacks = 1\nmax_lag = \"2s\"\nlease = \"1s\"").unwrap();
    assert_eq!(set.durability, Durability::Always);
    for durability in Durability::ALL {
        let set = dial(&format!("durability = \"{}\"", durability.name())).unwrap();
        assert_eq!(set.durability, durability);
    }
    assert_eq!((set.replicas, set.acks), (3, Acks::Count(1)));
    assert_eq!((set.max_lag, set.lease), (Micros::from_secs(2), Micros::from_secs(1)));
    assert_eq!(dial("replicas = 3\nacks = \"majority\"").unwrap(), Dial { replicas: 3, ..Dial::default() });
    for (text, reason) in [
        ("replicas = 0", "services.bank.replicas is 0; it must be 1 to 32"),
        ("acks = 33", "services.bank.acks is 33; it must be 1 to 32, or majority"),
        ("acks = \"most\"", "acks are a number of replicas, 1 to 32, or \"majority\""),
        ("acks = 300", "acks are a number of replicas, 1 to 32, or \"majority\""),
        ("durability = \"sometimes\"", "a durability is \"always\", \"interval\" or \"never\""),
        ("lease = \"0s\"", "services.bank.lease is 0ns; it must be 1ms to 1h"),
        (
            "replicas = 3\nacks = 4",
            "the dial of service \"bank\" is impossible: 4 acks of 3 replicas are out of range; ask for 1 to 3",
        ),
    ] {
        let error = dial(text).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    let of_variables =
        vars(&[("STEAD_CFG_SERVICES_BANK_ACKS", "2"), ("STEAD_CFG_SERVICES_BANK_REPLICAS", "3")]);
    let config = Config::from_file_and_vars(None, of_variables).unwrap();
    assert_eq!(config.services["bank"].dial("bank").unwrap().acks, Acks::Count(2));
}

#[test]
fn unknown_keys_are_refused_with_a_hint() {
    let error = Config::from_toml("thread = 2", "test").unwrap_err();
    assert!(error.to_string().contains("did you mean \"threads\""), "{error}");
    let error = Config::from_toml("[checkpoints]\nintervall = \"1s\"", "test").unwrap_err();
    assert!(error.to_string().contains("did you mean \"interval\""), "{error}");
    let error = Config::from_toml("threads = [", "test").unwrap_err();
    assert!(error.to_string().starts_with("test:1: "), "{error}");
}

/// Variables that Kubernetes sets in each container for Services named `stead` and `stead-cfg` with a port named
/// `http`.
#[test]
fn variables_that_others_set_are_never_fatal() {
    let mut others = vars(&[("STEAD_CFG_CHECKPOINT_KEEP", "3"), ("STEAD_CFG_", "1"), ("STEAD_", "1")]);
    for name in ["STEAD", "STEAD_CFG", "STEAD_SERVICES", "STEAD_CFG_SERVICES"] {
        for (rest, value) in [
            ("SERVICE_HOST", "10.0.0.11"),
            ("SERVICE_PORT", "7420"),
            ("SERVICE_PORT_HTTP", "7420"),
            ("PORT", "tcp://10.0.0.11:7420"),
            ("PORT_7420_TCP", "tcp://10.0.0.11:7420"),
            ("PORT_7420_TCP_PROTO", "tcp"),
            ("PORT_7420_TCP_PORT", "7420"),
            ("PORT_7420_TCP_ADDR", "10.0.0.11"),
        ] {
            others.push((format!("{name}_{rest}"), value.to_owned()));
        }
    }
    assert_eq!(Config::from_file_and_vars(None, others).unwrap(), Config::default());
    let near = ["STEAD_CFG_CHECKPOINT_KEEP", "STEAD_PORT"].map(str::to_owned);
    assert_eq!(
        with_hints(&near),
        "STEAD_CFG_CHECKPOINT_KEEP (did you mean STEAD_CFG_CHECKPOINTS_KEEP?), STEAD_PORT"
    );
}

#[test]
fn variables_of_earlier_versions_are_read_below_the_others_and_values_are_checked() {
    let config = Config::from_file_and_vars(
        None,
        vars(&[("STEAD_CFG_THREADS", "3"), ("STEAD_THREADS", "2"), ("STEAD_TASK_THREADS", "4")]),
    );
    let config = config.unwrap();
    assert_eq!((config.threads, config.task_threads), (Some(3), Some(4)));
    let config = Config::from_file_and_vars(None, vars(&[("STEAD_CFG_TASK_THREADS", "32")]));
    assert_eq!(config.unwrap().task_threads, Some(32));
    for name in ["STEAD_CFG_THREADS", "STEAD_THREADS"] {
        let error = Config::from_file_and_vars(None, vars(&[(name, "many")])).unwrap_err();
        assert!(error.to_string().starts_with(&format!("variable {name}: ")), "{error}");
    }
}

#[test]
fn addresses_of_a_node_of_a_cluster_need_one_that_is_part_of_a_cluster() {
    let cluster = |text: &str| Config::from_toml(&format!("[cluster]\n{text}"), "test").unwrap().cluster;
    for key in ["listen_peers", "advertise", "advertise_peers"] {
        let set = format!("{key} = \"127.0.0.1:7440\"\n");
        let error = cluster(&set).check().unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "cluster.{key} is the address of a node of a cluster, and this node is part of none; set cluster.listen or \
                 cluster.join, too"
            )
        );
        for part in ["listen = \"127.0.0.1:7430\"", "join = [\"127.0.0.1:7430\"]"] {
            assert_eq!(cluster(&format!("{set}{part}")).check(), Ok(()));
        }
    }
    assert_eq!(ClusterConfig::default().check(), Ok(()));
}

#[test]
fn values_out_of_range_are_refused_with_the_range() {
    for (text, must) in [
        ("threads = 0", "1 to 256"),
        ("task_threads = 0", "1 to 256"),
        ("task_threads = 257", "1 to 256"),
        ("handler_timeout = \"1ms\"", "10ms to 1h"),
        ("task_step_timeout = \"25h\"", "10ms to 24h"),
        ("shutdown_timeout = \"2h\"", "0s to 1h"),
        ("[services.a]\nshards = 5000", "1 to 4096"),
        ("[memory]\nbytes_max = 1", "1 MiB to 1 TiB"),
        ("[memory]\nuncommitted_bytes_max = 1048575", "1 MiB to 1 TiB"),
        ("[checkpoints]\nkeep = 0", "1 to 10000"),
        ("[checkpoints]\ncopy_interval = \"1ms\"", "10ms to 168h"),
        ("[checkpoints]\ncopy_to = \"s3://\"", "s3://bucket/prefix"),
        ("[checkpoints]\ncopy_to = \"file://here\"", "file:///directory"),
        ("[checkpoints]\ncopy_to = \"s3://key:secret@bucket/x\"", "without credentials"),
    ] {
        let error = Config::from_toml(text, "test").unwrap_err();
        assert!(matches!(error, ConfigError::Range { .. }) && error.to_string().contains(must), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    assert!(
        Config::from_toml("handler_timeout = \"3 weeks\"", "test")
            .unwrap_err()
            .to_string()
            .contains("invalid duration")
    );
    assert!(Config::from_toml("handler_timeout = 3", "test").is_err());
    assert!(parse_duration("99999999999999999h").is_err());
}
