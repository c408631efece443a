//! The broker of the demonstration: a real Kafka of one node, from jars that somebody has fetched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;

use super::processes::{Process, free_port, listens};

/// How long it may take to start: Java takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Kafka; killed when dropped.
pub struct Kafka {
    process: Process,
    /// `libs`, `classpath`, `data` and `kafka.jsa`, as `scripts/kafka-jars` leaves them.
    jars: PathBuf,
    dir: PathBuf,
    pub port: u16,
}

impl Kafka {
    pub fn start(dir: &Path, jars: &Path) -> anyhow::Result<Self> {
        let dir = dir.join("kafka");
        let data = dir.join("data");
        fs::create_dir_all(&data)?;
        let formatted = jars.join("data");
        let missing = || format!("{} is not what scripts/kafka-jars prints", jars.display());
        for entry in fs::read_dir(&formatted).with_context(missing)? {
            let path = entry?.path();
            fs::copy(&path, data.join(path.file_name().context("a file has a name")?))?;
        }
        let (port, controller) = (free_port()?, free_port()?);
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAINTEXT\n\
             log.dirs={}\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=1\n\
             group.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\n\
             broker.session.timeout.ms=2000\n\
             broker.heartbeat.interval.ms=500\n\
             auto.create.topics.enable=false\n",
            data.display()
        );
        fs::write(dir.join("server.properties"), properties)?;
        let mut kafka = Self { process: Process::none(), jars: jars.to_owned(), dir, port };
        kafka.restart()?;
        Ok(kafka)
    }

    /// Starts it on what is there, and waits until it listens.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        let classpath = fs::read_to_string(self.jars.join("classpath"))?;
        let mut command = Command::new("java");
        command.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]);
        command.arg(format!("-XX:SharedArchiveFile={}", self.jars.join("kafka.jsa").display()));
        command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classpath.trim_end(), "kafka.Kafka"]);
        command.arg(self.dir.join("server.properties"));
        self.process = Process::start(&mut command, &self.dir.join("kafka.log"), PATIENCE, || listens(self.port))
            .context("Kafka (with java 17 or newer) cannot be started")?;
        Ok(())
    }

    pub fn kill9(&mut self) {
        self.process.kill9();
    }
}
