mod decode;
mod desired;
mod glance;
mod keep;
mod readiness;
mod renames;
mod stability;
