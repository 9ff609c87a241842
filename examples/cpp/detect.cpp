// Run a file exported by tools/export_model.py without Python, and print its predictions.
//
//   pip install openvino        # its wheel has the library, the headers and the CMake files
//   cmake -S examples/cpp -B build -DOpenVINO_DIR=$(python -c "import openvino.utils as u; print(u.get_cmake_path())")
//   cmake --build build && build/detect model.onnx photo.ppm 0.5      # binary PPM: convert photo.jpg -auto-orient -depth 8 photo.ppm

#include <cstdint>
#include <exception>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <map>
#include <openvino/openvino.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// Return the image of a binary PPM as a tensor (1, H, W, 3), RGB or BGR.
ov::Tensor read_image(const std::string& path, bool bgr) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  size_t width = 0, height = 0, most = 0;
  if (!(file >> kind >> width >> height >> most) || kind != "P6" || most != 255)
    throw std::runtime_error(path + " is not a binary PPM with 8 bits per channel");
  file.get();  // one white space before the pixels
  ov::Tensor image(ov::element::u8, {1, height, width, 3});
  auto* pixels = image.data<uint8_t>();
  if (!file.read(reinterpret_cast<char*>(pixels), image.get_byte_size()))
    throw std::runtime_error(path + " is truncated");
  for (size_t i = 0; bgr && i < image.get_size(); i += 3) std::swap(pixels[i], pixels[i + 2]);
  return image;
}

// Return the strings of a JSON list. Class names have no quotes in them.
std::vector<std::string> strings(const std::string& json) {
  std::vector<std::string> found;
  std::istringstream parts(json);
  std::string between, inside;
  while (std::getline(parts, between, '"') && std::getline(parts, inside, '"')) found.push_back(inside);
  return found;
}

void print_detections(ov::InferRequest& request, const std::vector<std::string>& names, float threshold) {
  ov::Tensor boxes = request.get_tensor("boxes"), scores = request.get_tensor("scores");
  const auto classes = request.get_tensor("classes");
  const float *box = boxes.data<float>(), *score = scores.data<float>();
  for (size_t i = 0; i < scores.get_size(); i++, box += 4) {
    if (score[i] < threshold) continue;
    std::cout << names.at(classes.data<int64_t>()[i]) << std::setprecision(2) << ' ' << score[i]
              << std::setprecision(1) << " at " << box[0] << ", " << box[1] << ", " << box[2] << ", " << box[3] << '\n';
  }
}

void print_labels(const ov::Tensor& labels, const std::vector<std::string>& names) {
  std::map<int64_t, size_t> pixels;
  for (size_t i = 0; i < labels.get_size(); i++) pixels[labels.data<int64_t>()[i]]++;
  for (const auto& [label, count] : pixels)
    std::cout << (label < int64_t(names.size()) ? names[label] : std::to_string(label)) << ": "
              << std::setprecision(1) << 100.0 * count / labels.get_size() << "%\n";
}

int main(int count, char** arguments) try {
  if (count != 4) throw std::runtime_error("usage: detect model.onnx image.ppm threshold");
  ov::Core core;
  const auto model = core.read_model(arguments[1]);
  if (model->inputs().size() > 1)
    throw std::runtime_error("the model takes text embeddings of names; examples/detect.py makes them");
  const auto said = [&](const char* key) { return model->get_rt_info<std::string>("framework", key); };
  auto request = core.compile_model(model, "CPU").create_infer_request();
  request.set_tensor("images", read_image(arguments[2], said("pixel_format") == "BGR"));
  request.infer();
  std::cout << std::fixed;
  const auto names = strings(said("class_names"));
  for (const auto& output : strings(said("outputs"))) {
    if (output == "boxes") print_detections(request, names, std::stof(arguments[3]));
    if (output == "labels") print_labels(request.get_tensor(output), names);
  }
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
