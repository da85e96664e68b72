mod crash;
mod declare;
mod disks;
mod properties;
mod publish;
mod reserve;
mod support;
mod watching;
