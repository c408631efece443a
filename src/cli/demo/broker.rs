//! The broker of the demonstration: a real Kafka of one node, from jars that somebody has fetched.

use std::{
    fs::{self, File},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::processes::{Process, free_port, tail};

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
        let log = File::options().create(true).append(true).open(self.dir.join("kafka.log"))?;
        let classpath = fs::read_to_string(self.jars.join("classpath"))?;
        let child = Command::new("java")
            .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"])
            .arg(format!("-XX:SharedArchiveFile={}", self.jars.join("kafka.jsa").display()))
            .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classpath.trim_end(), "kafka.Kafka"])
            .arg(self.dir.join("server.properties"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("java cannot be started: Kafka needs version 17 or newer")?;
        self.process = Process::of(child);
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if begun.elapsed() > PATIENCE {
                bail!("Kafka does not answer; its log is\n{}", tail(&self.dir.join("kafka.log")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn kill9(&mut self) {
        self.process.kill9();
    }
}
