// Just enough JSON to write results.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace adakv::runner {

std::string json_string(const std::string& text);           // quoted and escaped
std::string json_list(const std::vector<int64_t>& values);  // [1, 2, 3]
std::string json_number(double value, int digits_after_point);

// An object, written field by field in order.
class JsonObject {
 public:
  JsonObject& add(const std::string& key, const std::string& text) { return put(key, json_string(text)); }
  JsonObject& add(const std::string& key, const char* text) { return put(key, json_string(text)); }
  JsonObject& add(const std::string& key, int64_t value) { return put(key, std::to_string(value)); }
  JsonObject& add(const std::string& key, double value, int digits) { return put(key, json_number(value, digits)); }
  JsonObject& add(const std::string& key, const std::vector<int64_t>& values) { return put(key, json_list(values)); }
  JsonObject& add(const std::string& key, const JsonObject& object) { return put(key, object.text()); }
  JsonObject& add_null(const std::string& key) { return put(key, "null"); }

  std::string text() const { return "{" + fields_ + "}"; }

 private:
  JsonObject& put(const std::string& key, const std::string& value) {
    fields_ += (fields_.empty() ? "" : ", ") + json_string(key) + ": " + value;
    return *this;
  }

  std::string fields_;
};

}  // namespace adakv::runner
