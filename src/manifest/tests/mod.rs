mod decode;
mod desired;
mod keep;
mod renames;
mod stability;
