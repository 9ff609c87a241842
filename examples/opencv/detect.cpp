// Detect objects in a video by OpenCV 5 and a detector of tools/export_model.py, draw them, and print them.
//
//   tools/export_model.py --config-file F --format onnx --size H W --output DIR MODEL.WEIGHTS W    # frames of H x W pixels
//   cmake -S examples/opencv -B build -DOpenCV_DIR=... && cmake --build build
//   build/detect DIR/model.onnx names.txt video.avi seen.avi 0.5
//
// OpenCV reads no metadata of ONNX files. names.txt has the names of the metadata's class_names, a line each:
//   python -c "import json, onnx; print(*json.loads({x.key: x.value for x in
//     onnx.load('model.onnx').metadata_props}['class_names']), sep='\n')" > names.txt

#include <algorithm>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <opencv2/dnn.hpp>
#include <opencv2/imgproc.hpp>
#include <opencv2/videoio.hpp>
#include <stdexcept>
#include <string>
#include <vector>

int main(int count, char** arguments) try {
  if (count != 6) throw std::runtime_error("usage: detect model.onnx names.txt video.avi seen.avi threshold");
  auto net = cv::dnn::readNetFromONNX(arguments[1]);
  std::vector<std::string> names;
  std::ifstream lines(arguments[2]);
  for (std::string line; std::getline(lines, line);) names.push_back(line);
  cv::VideoCapture video(arguments[3]);
  if (!video.isOpened()) throw std::runtime_error(std::string("cannot read ") + arguments[3]);
  const float threshold = std::stof(arguments[5]);
  const auto outputs = net.getUnconnectedOutLayersNames();  // OpenCV computes all or none
  const double rate = video.get(cv::CAP_PROP_FPS) > 0 ? video.get(cv::CAP_PROP_FPS) : 10;

  cv::VideoWriter writer;
  cv::Mat frame, rgb;
  std::vector<cv::Mat> found;
  const auto output = [&](const std::string& name) -> const cv::Mat& {
    return found.at(std::find(outputs.begin(), outputs.end(), name) - outputs.begin());
  };
  std::cout << std::fixed;
  for (int number = 0; video.read(frame); number++) {
    cv::cvtColor(frame, rgb, cv::COLOR_BGR2RGB);  // of a model with pixel_format "BGR": give the frame itself
    net.setInput(cv::Mat({1, rgb.rows, rgb.cols, 3}, CV_8U, rgb.data), "images");
    try {
      net.forward(found, outputs);
    } catch (const cv::Exception&) {
      const auto height = std::to_string(rgb.rows), width = std::to_string(rgb.cols);
      throw std::runtime_error("the model does not run on these frames. Export it with --size " + height + ' ' + width);
    }
    const auto* box = output("boxes").ptr<float>();
    const auto* scores = output("scores").ptr<float>();
    const auto* classes = output("classes").ptr<int64_t>();
    for (size_t i = 0; i < output("scores").total(); i++, box += 4) {
      if (scores[i] < threshold) continue;
      const auto& name = names.at(classes[i]);
      std::cout << number << ": " << name << std::setprecision(2) << ' ' << scores[i] << std::setprecision(1) << " at "
                << box[0] << ", " << box[1] << ", " << box[2] << ", " << box[3] << '\n';
      cv::rectangle(frame, cv::Point2f(box[0], box[1]), cv::Point2f(box[2], box[3]), {60, 180, 75}, 2);
      cv::putText(frame, name, cv::Point2f(box[0] + 2, box[1] + 12), cv::FONT_HERSHEY_SIMPLEX, 0.4, {0, 0, 0});
    }
    if (!writer.isOpened()) writer.open(arguments[4], cv::VideoWriter::fourcc('M', 'J', 'P', 'G'), rate, frame.size());
    writer.write(frame);
  }
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
